-- All that one request was promised is counted, what it has no longer too.
CREATE INDEX bindings_by_request ON bindings (request_id);
CREATE INDEX mdevs_by_request ON mdevs (request_id);
