from .routing_file import Routing as Routing
