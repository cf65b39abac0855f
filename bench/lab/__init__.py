"""What several benches share: models, processes, recordings, tables and plots."""
