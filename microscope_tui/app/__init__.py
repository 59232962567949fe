"""The Textual user interface. Drawing < widgets < actions < screens < the application."""
