alloc: {{ env "NOMAD_ALLOC_NAME" }}
