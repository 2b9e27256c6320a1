"""What both peers share: the protocols, the cases, the command line. Runs on trio and on asyncio."""
