"""Back ends that run a model behind one small contract (`engines.base`), loaded lazily."""
