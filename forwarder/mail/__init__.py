"""Pure decisions about mail: no asyncio, sockets, SQL, clock or randomness; time and chance are arguments."""
