"""The feedback store: what people and judges were shown and what they judged, append-only, in SQLite or PostgreSQL."""
