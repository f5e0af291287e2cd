"""From numbers to what people look at: tables, figures, the page, exports, the live view."""
