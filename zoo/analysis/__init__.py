"""Tools that look into a trained model, one file a tool."""
