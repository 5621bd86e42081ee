"""The life of an agent behind a chat server."""

from infra.structured_chat import StructuredChat


class ChatAgent:
    """What such agents have in common: one server's client, opened before the first clip and closed after the last."""

    def __init__(self, chat: StructuredChat) -> None:
        self._chat = chat

    async def setup(self) -> None:
        """Open the server's client."""
        await self._chat.start()

    async def close(self) -> None:
        """Close the server's client."""
        await self._chat.close()

    async def probe(self) -> None:
        """Ask the server for a word."""
        await self._chat.probe()
