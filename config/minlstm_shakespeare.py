# minLSTM on the characters of Shakespeare, as "Were RNNs All We Needed?" has it (App. C): 7,150,080 parameters.
# The recipe of minGRU, and what was chosen there. Any GPU will do: it takes 1.1 GiB.

base = "mingru_shakespeare.py"
mixer = "minlstm"
