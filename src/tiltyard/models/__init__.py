"""Models: loading, wrappers, adapters and heads."""

from tiltyard.models.without_scipy import import_losses

import_losses()  # before any model class is imported
