"""The only MLflow code: runs, releases, promotion."""
