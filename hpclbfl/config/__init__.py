"""The job: its sections, reading, validation, and migration of jobs of older versions."""
