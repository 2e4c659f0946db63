"""Long runs that prove what the product promises; a small share of each is part of every test run."""
