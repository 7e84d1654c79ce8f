"""Networks: backbones that give Features, heads, teachers, queues."""
