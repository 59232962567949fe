"""The eyepiece: the Textual user interface. Drawing < widgets < screens < the application."""
