"""Any agent program as a world: what it asks its model is the observation, what the model replies is the action."""
