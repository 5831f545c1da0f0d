"""Published judges measured with Tiltyard's own counts, beside the figures that were published for them."""
