"""TFLite files of an integer plan, written on the schema that LiteRT comes with: no TensorFlow, no converter."""
