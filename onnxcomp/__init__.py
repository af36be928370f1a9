"""Makes trained ONNX models smaller and faster without retraining."""
