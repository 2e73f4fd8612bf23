"""Interfaces in the browser and the terminal: chat, viewer of runs, and what all HTML pages share."""
