"""Routing: objectives, orders, explanations, stickiness."""
