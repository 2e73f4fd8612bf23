"""What is looked at in a browser or a terminal: the chat, and what the HTML pages share."""
