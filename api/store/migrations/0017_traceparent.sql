-- The trace of the request that an event belongs to (W3C Trace Context), which webhooks get.
ALTER TABLE events ADD COLUMN traceparent TEXT;
