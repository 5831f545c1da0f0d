"""Puts the labelling page together."""

from __future__ import annotations

from fastapi import FastAPI

from tiltyard.feedback.collect import admin, door, pages
from tiltyard.feedback.collect.desk import Desk, Settings
from tiltyard.feedback.web.site import Site, new_app

PACKAGE = "tiltyard.feedback.collect"


def collect_app(site: Site, settings: Settings | None = None) -> FastAPI:
    """Returns the application of the labelling page.

    Args:
        site: its `packages` must hold `PACKAGE`.
        settings: of the assignment of tasks, and of what is asked.
    """
    app = new_app(site, "Tiltyard collect")
    app.state.desk = Desk(site.database, settings or Settings())
    app.state.figures = admin.Figures(site.database)
    app.include_router(pages.router)
    app.include_router(admin.router)
    app.include_router(door.router)
    return app
