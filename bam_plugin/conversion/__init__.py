"""From torch to packed: lowering, comparison, costs, and the export to ONNX."""
