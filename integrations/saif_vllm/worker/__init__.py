"""The workers' room: layers are hooked, steered and counted. Importing it arms nothing."""
