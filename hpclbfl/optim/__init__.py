"""Learning-rate schedules and optimizers beyond torch's."""
