"""The job: its sections, how it is read and validated, and how older ones are brought up to date."""
