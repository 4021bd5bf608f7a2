"""Mail on: dispatcher, deliveries, routes, connections, bounces and webhooks."""
