"""The planner as one HTML page: sliders whose figures the browser computes with formulas made from the Python ones."""
