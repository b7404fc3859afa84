"""What listens on the client port. A door turns bytes into calls and knows no keys."""

from kvstore.door.grpc_door import GrpcDoor, GrpcDoorSettings

__all__ = ["GrpcDoor", "GrpcDoorSettings"]
