"""Five reports on small deep-learning libraries, their experiments written as data, and what it takes to repeat them."""
