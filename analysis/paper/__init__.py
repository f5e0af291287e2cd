"""The paper's own tables beside a folder's runs; the printed numbers are in the YAML files."""
