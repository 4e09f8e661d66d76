"""The gateway: read models in, bytes out. Serves pages and Server-Sent Events, and writes nothing anywhere."""
