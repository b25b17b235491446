// Waits for a word, as the interactor does.
#include <iostream>
#include <string>

int main() {
    std::string answer;
    std::cin >> answer;
}
