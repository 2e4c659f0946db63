"""Clients that misbehave, and what those who behave notice of it; a small share of it is part of every test run."""
