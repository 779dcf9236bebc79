"""From a history to recommendations: bundles, and what is done with them."""
