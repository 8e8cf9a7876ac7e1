"""The locally adaptive learning loss: reference, teaching code and oracle."""
