from . import build as build, model as model, parts as parts, recipes as recipes, train as train
