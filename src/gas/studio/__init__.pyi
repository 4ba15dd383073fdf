from . import actions as actions, drawing as drawing, learning as learning, page as page
