"""What `hpclbfl bench federated` runs in its launches: this package, a plain loop, and other federated frameworks."""
