"""The main screen: a row is a layer, the heatmap of its experts, curves, and the time line."""
