MORE=of an artifact
