"""Common code of both peers: protocols, cases, command line. Runs on trio and on asyncio."""
