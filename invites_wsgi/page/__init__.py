"""What the invite page is made of: apps, languages, looks, and the templates that put them together."""
