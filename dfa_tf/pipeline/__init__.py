"""From a configuration to an exported student: the stages and what runs them."""
