"""System prompts as versions: recognised by what they say, learnt beside the traffic, replaced where the registry says so."""

from spanloop_collector.gateway.prompts.book import Book, BookReader
from spanloop_collector.gateway.prompts.placing import Applied
from spanloop_collector.gateway.prompts.service import Prompts, StoreRegistry

__all__ = ["Applied", "Book", "BookReader", "Prompts", "StoreRegistry"]
