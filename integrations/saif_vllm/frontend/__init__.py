"""The front end's room: requests are checked while they can still be answered with HTTP 400."""
