"""The ground of every page of Tiltyard: the application, sign-in, protection, safe Markdown, words in three languages.

`site.new_app` makes the FastAPI application; a page adds its routes, its `templates/` and its `static/` files.
"""
