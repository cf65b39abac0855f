"""Parts that several benches share: models, processes, recordings, tables and plots."""
