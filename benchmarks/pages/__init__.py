"""The pages for people as a user sees them: example stores, a server in this process, screenshots, and their load."""
